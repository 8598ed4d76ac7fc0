"""The public door: OpenAI's API over the engines, keys and routes from control, usage that is never lost."""
