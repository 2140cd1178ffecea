"""The engines: what all of them promise beyond the store contract, and a folder for each."""
