"""The reliability campaign: experiments that try to break what the pack promises; docs/reliability.md is its report."""
