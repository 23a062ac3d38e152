"""Device meshes, sharding rules, declarations of parameters, and collectives of processes."""
