"""`python -m mesh.cli`: the app, where no entry points are installed."""

from mesh.cli.app import main

main()
