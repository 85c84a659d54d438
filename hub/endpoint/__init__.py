"""What goes with a pushed classifier for Hugging Face's Inference Endpoints."""
