"""Who has no business here is turned away: at every HTTP door, at every socket, in every folder,
and with every message that is forged or comes a second time. What is let in with the right
credentials stands beside: a door that nobody opens turns everybody away.
"""
