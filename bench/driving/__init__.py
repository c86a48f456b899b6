"""Asks servers what a schedule says, from processes of their own, and tells how it goes."""
