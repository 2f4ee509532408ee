// glovebox serve: the daemon itself, in this process. The one command that does not go through the SDK.
