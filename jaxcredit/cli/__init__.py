"""The command line: `jaxcredit COMMAND ...`."""
