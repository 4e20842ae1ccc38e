"""The command line. Modules here import click and nothing heavy; a command imports the rest when it runs."""
