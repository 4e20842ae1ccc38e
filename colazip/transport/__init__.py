"""Archives over a network, by Arrow Flight: `server` gives, `client` asks, `requests` is what they say."""
