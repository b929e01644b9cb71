"""The only place that imports ray: actors, placement, the producer's handle, Ray Data."""
