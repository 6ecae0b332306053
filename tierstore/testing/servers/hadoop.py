"""Hadoop's programs: Java, and jars that Maven fetches once into its own cache."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tierstore.testing.servers import class_archive
from tierstore.testing.servers.programs import ServerUnavailableError

VERSION = "3.4.2"
_JARS = {
    "org.apache.hadoop:hadoop-client-minicluster": VERSION,
    "org.apache.hadoop:hadoop-client-api": VERSION,
    "org.apache.hadoop:hadoop-client-runtime": VERSION,
    "javax.xml.bind:jaxb-api": "2.3.1",  # Java 11 and later have none of their own
    "org.slf4j:slf4j-simple": "1.7.36",
}
_PLUGIN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1"
_INSTALL_SECONDS = 900
_SETTINGS = (
    "-XX:+UseSerialGC",  # fewer threads, which matter on small machines
    "-XX:-UsePerfData",  # writes to /tmp
    "-Djava.net.preferIPv4Stack=true",
    # A datanode's HTTP has two threads a core, and each waits up to 0.4 s for the namenode when it
    # closes a file: two cores would end ten files a second. These are the threads of 16 cores.
    "-Dorg.apache.hadoop.shaded.io.netty.eventLoopThreads=32",
    "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn",
    "-Dorg.slf4j.simpleLogger.showDateTime=true",
)


@dataclass(frozen=True, slots=True)
class Hadoop:
    """Where Hadoop's programs are.

    Attributes:
        java: the program that runs them.
        jars: their class path.
        archive: of their classes, which may not be there yet.
    """

    java: Path
    jars: tuple[Path, ...]
    archive: Path

    def command(self, main: str, folder: Path, *arguments: str, heap: int = 384) -> list[str]:
        """Return the command line of one program.

        Args:
            main: its main class, below org.apache.hadoop.hdfs.
            folder: of the configuration files; its `tmp` takes temporary files.
            arguments: of the program.
            heap: MiB that it may take.
        """
        (folder / "tmp").mkdir(exist_ok=True)
        path = os.pathsep.join(map(str, (*self.jars, folder)))  # an archive is of what is first
        options = (
            *(*_SETTINGS, f"-Xmx{heap}m", f"-Djava.io.tmpdir={folder / 'tmp'}"),
            *class_archive.options(self.archive, folder),
        )
        return [str(self.java), *options, "-cp", path, f"org.apache.hadoop.hdfs.{main}", *arguments]

    def archive_classes(self, root: Path) -> None:
        """Make the archive if it is missing, of what the daemons below `root` have loaded."""
        command = [str(self.java), *_SETTINGS, "-cp", os.pathsep.join(map(str, self.jars))]
        class_archive.make(self.archive, root, command)


def find_hadoop() -> Hadoop:
    """Return Hadoop's programs, fetching their jars with Maven when they are nowhere.

    Raises:
        ServerUnavailableError: Java or Maven is missing, or Maven could not fetch them.
    """
    java = shutil.which("java")
    if java is None:
        raise ServerUnavailableError(
            "java is not on PATH, and HDFS runs on it", hint="install Java 17 and Maven"
        )
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tierstore"
    found = cache / f"hadoop-{VERSION}.classpath"
    jars = _read(found)
    if not jars:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            _fetch(Path(folder) / "pom.xml", Path(folder) / "classpath")
            (Path(folder) / "classpath").replace(found)
        jars = _read(found)
    if not jars:
        raise ServerUnavailableError("Maven fetched no jars of Hadoop")
    return Hadoop(Path(java), jars, class_archive.place_of(Path(java), jars, cache))


def _read(listing: Path) -> tuple[Path, ...]:
    """Return the jars that a class path file names, nothing if one of them is gone."""
    try:
        jars = tuple(Path(name) for name in listing.read_text().strip().split(os.pathsep))
    except FileNotFoundError:
        return ()
    return jars if all(jar.is_file() for jar in jars) else ()


def _fetch(pom: Path, listing: Path) -> None:
    maven = shutil.which("mvn")
    if maven is None:
        raise ServerUnavailableError(
            "mvn is not on PATH, and Hadoop's jars are fetched with it", hint="install Maven"
        )
    print(  # noqa: T201 - a minute of silence would look like a hang
        f"fetching Hadoop {VERSION} once, with Maven (90 MB)", file=sys.stderr, flush=True
    )
    pom.write_text(_pom())
    command = [maven, "-q", "-B", "-f", str(pom), f"{_PLUGIN}:build-classpath"]
    try:
        done = subprocess.run(
            [*command, f"-Dmdep.outputFile={listing}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_INSTALL_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ServerUnavailableError(
            f"mvn took more than {_INSTALL_SECONDS} s to fetch Hadoop", hint="try again"
        ) from None
    if done.returncode or not listing.is_file():
        raise ServerUnavailableError(
            f"mvn could not fetch Hadoop: {(done.stdout + done.stderr).strip()[-500:]}"
        )


def _pom() -> str:
    wanted = "".join(
        f"<dependency><groupId>{name.partition(':')[0]}</groupId>"
        f"<artifactId>{name.partition(':')[2]}</artifactId><version>{version}</version>"
        "</dependency>"
        for name, version in _JARS.items()
    )
    return (
        "<project><modelVersion>4.0.0</modelVersion><groupId>tierstore</groupId>"
        "<artifactId>testing</artifactId><version>1</version>"
        f"<dependencies>{wanted}</dependencies></project>"
    )
