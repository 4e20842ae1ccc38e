"""Measurements: colazip's own and the peers' side of every comparison. Imported only by what measures."""
