"fastaudio 1.0.2 under its own names: write `fastaudio_lite.compat` where old code says `fastaudio`"
__version__ = "1.0.2"  # of the fastaudio that this stands in for
