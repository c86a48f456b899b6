"""Evidence that tenants are apart, and that nothing of theirs is kept: against a live deployment.

``deterministic`` counts cached tokens, ``timing`` compares how long answers take, ``volatile``
searches whatever could be written to, ``refusals`` knocks on every socket. Each has a positive
control: where that finds nothing, the part is invalid, and has not passed.
"""
