"""What both roles need of an engine that is not our own service."""
