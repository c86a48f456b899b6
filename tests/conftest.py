"""What holds for every test."""

from hypothesis import settings

# A deadline for one example would be an assertion about how busy the machine is.
settings.register_profile("kvferry", deadline=None)
settings.load_profile("kvferry")
