"""The commands behind `cachesmith.cli`: read the options, call the library, print. None imports torch until it runs."""
