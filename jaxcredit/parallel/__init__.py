"""Device meshes and sharding rules, declarations of parameters, and collectives between processes."""
