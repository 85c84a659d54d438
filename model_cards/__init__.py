"""What leaves this project: model cards, pushes to the Hub, converted official checkpoints, the demo page."""
