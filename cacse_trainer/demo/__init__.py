"""A page in the browser around one encoder or two (extra ``demo``)."""
