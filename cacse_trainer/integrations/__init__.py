"""The encoder on engines that a cluster runs."""
