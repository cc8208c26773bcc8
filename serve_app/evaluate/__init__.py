"""How well is a person kept? Pictures drawn through the HTTP API, judged from outside."""
