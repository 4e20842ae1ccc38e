"""Training: corpus -> tokenizer -> Text VAE -> DiT prior -> search head -> model folder."""
