"""Settings of a run: dataclasses of arguments, and the YAML recipes and flags that fill them."""
