"""The commands. Run as a module, ``python -m cacse_trainer.cli.COMMAND``, one loads the libraries before it runs.

Its help and its typos are answered before that, as by ``cacse-trainer COMMAND``.
"""

import sys
from importlib import import_module

from cacse_trainer.cli.boundary import leaving_on_ctrl_c

if sys.argv[:1] == ["-m"] and "cacse_trainer.cli.main" not in sys.orig_argv:  # which loads them when it must
    from cacse_trainer.cli.main import GO_ON, answer_module

    if (code := answer_module(sys.orig_argv)) != GO_ON:
        sys.exit(code)
    with leaving_on_ctrl_c():  # they take seconds
        import_module("cacse_trainer.training.trainer")
