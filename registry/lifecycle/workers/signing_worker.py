"""Signs folders and checks signatures with sigstore's model-signing library, in its environment.

The folder may hold links to its files. Every file is included, even git's.
"""

import os
from typing import Union

import qpack_worker
from cryptography.exceptions import InvalidSignature
from model_signing import hashing, signing, verifying
from signing_job import Key, Signed, SignJob, Verified, VerifyJob


def work(job, _out):
    """Sign or verify."""
    return sign(job) if isinstance(job, SignJob) else verify(job)


def files():
    """How the folder is read: each file by its SHA-256, none left out."""
    return hashing.Config().set_allow_symlinks(True).set_ignored_paths(paths=[], ignore_git_paths=False)


def sign(job):
    """Write the signature, a sigstore bundle."""
    config = signing.Config().set_hashing_config(files())
    if job.key is None:
        keyless(config)
    else:
        with_key(config, job.key)
    qpack_worker.progress(0, 0, "hashing")
    config.sign(job.folder, job.signature)
    return Signed()


def with_key(config, key):
    """Use a private key. Its password is read from the environment, never from the job file."""
    password = os.environ.get("QPACK_KEY_PASSWORD")
    try:
        config.use_elliptic_key_signer(private_key=key, password=password.encode() if password else None)
    except TypeError:
        wanted = "the key isn't encrypted, but a password is set" if password else "the key is encrypted"
        qpack_worker.fail(f"{key}: {wanted}", "Set QPACK_KEY_PASSWORD to the password of an encrypted key only.")
    except ValueError as error:
        qpack_worker.fail(
            f"{key} is not a private key that can sign ({error})",
            "Use a PEM file with a key on P-256, P-384 or P-521 (and QPACK_KEY_PASSWORD its password):"
            " `openssl ecparam -name prime256v1 -genkey -noout -out release.key`.",
        )
    except AttributeError:
        qpack_worker.fail(f"{key} is not an elliptic-curve key", "Use a key on P-256, P-384 or P-521.")


def keyless(config):
    """Use the environment's identity: a CI job's, or a token. Never prompts."""
    import sigstore.oidc

    why = ""
    try:
        token = os.environ.get("SIGSTORE_ID_TOKEN") or sigstore.oidc.detect_credential()
    except sigstore.oidc.IdentityError as error:
        # A CI job without permission to request a token, or that can't reach the issuer.
        token, why = None, f" ({error})"
    if not token:
        qpack_worker.fail(
            f"no identity to sign with{why}",
            "Run it in a CI job that may request an ID token (GitHub Actions: `permissions: id-token: write`), set"
            " SIGSTORE_ID_TOKEN, or sign with --key.",
        )
    try:
        config.use_sigstore_signer(identity_token=token)
    except Exception as error:
        unreachable(error)


def unreachable(error):
    """Sigstore's roots of trust are fetched on first use."""
    qpack_worker.fail(
        f"sigstore can't be used ({type(error).__name__}: {error})", "It needs the network; a key pair (--key) doesn't."
    )


def verify(job):
    """Check every signature against every trusted signer."""
    return Verified(tuple(tuple(one(job.folder, path, who) for who in job.trusted) for path in job.signatures))


def one(folder, signature, who):
    """None if the signature is theirs and the folder unchanged, else the reason."""
    config = verifying.Config().set_hashing_config(files())
    if isinstance(who, Key):
        try:
            config.use_elliptic_key_verifier(public_key=who.path)
        except (ValueError, AttributeError) as error:
            qpack_worker.fail(f"{who.path} is not a public key ({error})", "Use a PEM file.")
    else:
        try:
            config.use_sigstore_verifier(identity=who.identity, oidc_issuer=who.issuer)
        except Exception as error:
            # Another trusted signer may have signed: a key needs no network.
            return f"sigstore can't be used ({type(error).__name__}: {error}); it needs the network"
    try:
        config.verify(folder, signature)
    except InvalidSignature:
        return "the signature is forged or damaged"
    except Exception as error:
        # Signatures are untrusted: any error of the library means that it isn't valid.
        return str(error).strip() or type(error).__name__
    return None


if __name__ == "__main__":
    qpack_worker.main(work, Union[SignJob, VerifyJob])
