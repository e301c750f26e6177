from starlette.testclient import TestClient


def test_health_and_readiness(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    ready = client.get("/readyz").json()
    assert ready["status"] == "ready"
    assert ready["model"]["name"] == "steel_defects"


def test_model_shows_its_card(client: TestClient) -> None:
    card = client.get("/model").json()
    assert card["class_names"] == ["Crazing", "Inclusion", "Patches", "Pitted", "Rolled", "Scratches"]
    assert card["sha256"].startswith(card["version"])
    assert card["image"] == {
        "height": 200,
        "width": 200,
        "channels": 1,
        "resample": "bilinear",
        "alpha": "white",
        "fit": "stretch",
    }
    assert card["novelty"]["threshold"] > 0
    assert "class_weights" not in card
    assert "whitening" not in card["novelty"]
    assert card["metrics"]["test"]["images"] == 72
