"""What a command's options and its machine make of the cluster file."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from deploy import places, run_folder
from kvstore import cluster
from kvstore.cluster import ClusterConfig
from kvstore.errors import ConfigError
from kvstore.machine import Machine, inspect


def tell(text: str) -> None:
    """Progress and complaints go to standard error; standard output is for results."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def loaded(options: argparse.Namespace) -> ClusterConfig:
    """The file that was given, or the defaults. Raises ConfigError."""
    return cluster.load(options.config) if options.config else ClusterConfig()


def running(options: argparse.Namespace) -> ClusterConfig:
    """What runs here was started with: the file, or that of ``kvferry up``. Raises ConfigError."""
    config = resolved(loaded(options), inspect())
    if options.config:
        return config
    file = Path(config.run_dir) / run_folder.RESOLVED
    if not file.exists():
        raise ConfigError("kvferry up does not run here with its defaults: give --config")
    return cluster.load(file)


def resolved_file(options: argparse.Namespace) -> Path:
    """The configuration, nothing left open, of what runs on this host. Raises ConfigError."""
    folder = Path(resolved(loaded(options), inspect()).run_dir)
    for name in (run_folder.RESOLVED, "proxy.toml"):
        if (folder / name).exists():
            return folder / name
    raise ConfigError(
        f"no kvferry up and no proxy runs with the run folder {folder}: start it, or give --config"
    )


def resolved(config: ClusterConfig, machine: Machine) -> ClusterConfig:
    """``config`` with nothing left open. Raises ConfigError."""
    return places.resolve(config, machine, places.homes(os.environ, os.getuid()))
