"""From one cluster file to running processes.

Reading order: ``cli`` (the ``kvferry`` command), ``places`` (what the file leaves open is decided),
``models``, ``checks``, ``doctor`` and ``volatile`` (the self-check), then ``supervisor``
(everything on this machine, started, kept up, ended). ``operating`` is for what runs already.
"""
