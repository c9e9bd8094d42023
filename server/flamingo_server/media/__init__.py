"""A client's media reference → bytes (`resolve`) → pixels, in a killable process (`MediaPool`)."""

from flamingo_model.film import FilmOptions
from flamingo_server.media.decode import DecodedMedia
from flamingo_server.media.limits import MediaLimits
from flamingo_server.media.pool import MediaPool
from flamingo_server.media.resolve import MediaReference, resolve

__all__ = ["DecodedMedia", "FilmOptions", "MediaLimits", "MediaPool", "MediaReference", "resolve"]
