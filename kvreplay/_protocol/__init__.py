"""The replay protocol, pure: keys, params, records, steps, flows. No I/O, no clock, no threads."""
