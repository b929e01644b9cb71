"""Object stores: one Protocol, one module for each engine, and `open_store` that picks one for a URL."""

from ray_sink.stores.base import Capabilities, ObjectInfo, Store
from ray_sink.stores.opening import open_store

__all__ = ["Capabilities", "ObjectInfo", "Store", "open_store"]
