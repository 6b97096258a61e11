"""closeup.tools: typed tools, the registry and frames by time. Imports without torch."""
