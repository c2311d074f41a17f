"""Clients on machines of their own: both ends of a federation, whatever carries the parcels between them."""
