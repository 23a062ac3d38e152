"""The command line: `jaxcredit train`, `plan`, `eval` ...."""
