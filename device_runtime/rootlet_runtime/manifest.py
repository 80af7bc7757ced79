"""The bundle's manifest: what a device is told about the graphs it runs.

The manifest is data, validated field by field; a field that this version does not know is refused, because it
might change the meaning of the others. Free-form additions belong under ``extensions``, which is ignored.
"""
