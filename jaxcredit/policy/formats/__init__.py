"""Reading and writing of checkpoints in the formats of Hugging Face (safetensors) and GGUF."""
