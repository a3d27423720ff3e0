"""The commands. Run as a module, ``python -m cacse_trainer.cli.COMMAND``, one loads the libraries before it runs."""

import sys
from importlib import import_module

from cacse_trainer.cli.boundary import leaving_on_ctrl_c

if sys.argv[:1] == ["-m"] and "cacse_trainer.cli.main" not in sys.orig_argv:  # which loads them when it must
    with leaving_on_ctrl_c():  # they take seconds
        import_module("cacse_trainer.training.trainer")
