"""The command line `jaxcredit`: one file for each group of commands."""
