"""Is anything left of a prompt outside of memory? A canary is sent by every path, then whatever
could have been written to is searched for it, in every form that it may have taken.
"""
