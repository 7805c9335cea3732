"""The model families and what they share. A family's folder holds all that only it knows; `family.py` is the seam."""
