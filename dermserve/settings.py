"""All settings, typed and frozen; built once at an entry point and passed down. Nothing else reads the environment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

REPOSITORY_ROOT = Path(__file__).resolve().parent.parent


class Settings(BaseSettings):
    """Read from `DERMSERVE_*` environment variables; every default suits `make serve` on one machine.

    Raises:
        pydantic.ValidationError: a variable holds a value of the wrong type or range.
    """

    model_config = SettingsConfigDict(env_prefix="DERMSERVE_", frozen=True, extra="ignore")

    state_dir: Path = Field(Path(".dermserve"), description="Where the embedded database, logs and sockets live.")
    model_repository: Path = Field(
        REPOSITORY_ROOT / "model_repository", description="The Triton model repository to serve and whose card to read."
    )

    host: str = Field("127.0.0.1", description="Address the web server listens on.")
    port: int = Field(8000, ge=1, le=65535, description="Port of the web pages and the JSON API.")
    workers: int = Field(1, ge=1, le=64, description="uvicorn worker processes.")
    public_url: str | None = Field(None, description="https://… address users see; turns on Secure cookies.")

    triton_url: str | None = Field(
        None, description="host:port[,host:port…] of Triton's gRPC; unset: start the embedded one."
    )
    triton_grpc_port: int = Field(8001, ge=1, le=65535)
    triton_http_port: int = Field(8003, ge=1, le=65535)
    triton_metrics_port: int = Field(8002, ge=1, le=65535)
    inference_timeout_s: float = Field(30.0, gt=0, description="Deadline of one inference call, retries included.")
    cpu_cores: int | None = Field(
        None, ge=1, le=1024, description="Cores to fit Triton's instances and queues to; unset: those it may use."
    )
    precision: Literal["auto", "FP32", "INT8"] = Field(
        "auto",
        description="Of the network on a CPU; auto: INT8 where the model card's gate let it pass and the CPU has it.",
    )
    triton_trace_url: str | None = Field(
        None, pattern="^https?://", description="OTLP/HTTP collector for Triton's traces, http://host:4318/v1/traces."
    )
    triton_trace_rate: int = Field(100, ge=1, description="One of this many requests is traced.")

    api_key: SecretStr | None = Field(None, description="Key of `dermserve predict` for the HTTP API of a server.")

    database_url: str | None = Field(None, description="postgresql://… ; unset: start the embedded PostgreSQL.")

    dicom_host: str = Field("127.0.0.1", description="Address the DICOM door listens on.")
    dicom_port: int = Field(11112, ge=1, le=65535, description="Port of the DICOM door.")
    dicom_ae_title: str = Field(
        "DERMSERVE", pattern=r"^[!-\[\]-~]([ -\[\]-~]{0,14}[!-\[\]-~])?$", description="What DICOM nodes call this one."
    )
    dicom_sop_classes: str = Field(
        "",
        pattern=r"^[0-9., ]*$",
        description="UIDs of the storage SOP classes that are taken, with commas; unset: photographs, dermoscopic ones "
        "included, and secondary captures.",
    )
    dicom_associations: int = Field(32, ge=1, le=256, description="DICOM associations at once; more are rejected.")
    dicom_tls_certificate: Path | None = Field(
        None,
        description="PEM file with the certificate and its chain; the DICOM door then speaks TLS and nothing else.",
    )
    dicom_tls_key: Path | None = Field(None, description="PEM file with its key; unset: the key is in the same file.")
    dicom_tls_client_ca: Path | None = Field(
        None,
        description="PEM file with the authorities whose certificate a DICOM node must show; unset: none is asked.",
    )

    delivery_networks: str | None = Field(
        None,
        description="10.0.0.0/8,… : the only networks results are sent to; unset: all but loopback and link-local ones.",
    )
    delivery_ca: Path | None = Field(
        None, description="PEM file with authorities that destinations of results are trusted by, beside the system's."
    )

    operating_point: str = Field(
        "sensitivity_95", description="Named operating point of the model card that decides referral."
    )
    session_hours: int = Field(12, ge=1, description="Hours after which a web session ends.")
    session_idle_minutes: int = Field(
        60, ge=5, description="Minutes without a request after which it ends before that."
    )
    secret_key: SecretStr | None = Field(
        None,
        min_length=32,
        description="Seals what is kept secret in the database; to replace it: new,old. Unset: a file in the state folder.",
    )
    rate_limit: int = Field(60_000, ge=60, description="Images a minute that one user or one API key may send.")
    registration_limit: int = Field(120, ge=1, description="Accounts a minute that one network address may register.")

    smtp_url: SecretStr | None = Field(
        None,
        description="smtp+starttls://user:password@host:587; unset: mail goes to logs/mail.log in the state folder.",
    )
    mail_from: str = Field("dermserve <dermserve@localhost>", description="Sender of mail.")

    oidc_issuer: str | None = Field(
        None, pattern="^https?://", description="A hospital's sign-on (OpenID Connect): its issuer's address."
    )
    oidc_client_id: str = Field("", description="What the sign-on knows this server as.")
    oidc_client_secret: SecretStr | None = Field(None, description="This server's secret at the sign-on.")
    oidc_name: str = Field("your hospital", description="What the login page calls the sign-on.")

    @property
    def triton_urls(self) -> tuple[str, ...]:
        """gRPC addresses to use, in order; the embedded server's own when `triton_url` is unset."""
        if self.triton_url is None:
            return (f"127.0.0.1:{self.triton_grpc_port}",)
        return tuple(part.strip() for part in self.triton_url.split(",") if part.strip())

    @property
    def embedded_triton(self) -> bool:
        return self.triton_url is None
