# What can be made here; `make` alone prints this list.
#
#   make demo    back up a real virtual machine and restore it, before your eyes (root, by sudo)
#   make test    everything that is checked before a change goes in
#   make lint    the part of `make test` that runs no tests: format, clippy, documentation, licences
#   make build   the program, as target/release/virtkeep
#
# All of them first install what is missing on a Debian machine; tests/stack/install.sh --help
# tells what that is.

.PHONY: help demo test lint build
.NOTPARALLEL:

help:
	@sed -n 's/^#   //p' Makefile

demo:
	@tests/stack/demo.sh

test:
	@tests/stack/check.sh

lint:
	@tests/stack/check.sh install format clippy docs licences scripts

build:
	@tests/stack/install.sh build
	cargo build --release --locked
