"""Secure aggregation on a device: the server learns a sum over devices, and none of its terms.

The protocol is Bonawitz et al. 2017 with the sparse graph of Bell et al. 2020, in five stages
(`docs/secure_aggregation.md`). `device` is a device's side of one round, `policy` what the device
insists on, `enrolment` who vouches for a device's identity.
"""
