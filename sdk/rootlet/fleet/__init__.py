"""The link to a Flower SuperLink, spoken without flwr."""
