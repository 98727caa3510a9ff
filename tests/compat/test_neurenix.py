"""The examples of the Neurenix page, with only the import lines changed."""

import pytest
import torch

from neurenix_ms.compat import neurenix as nx


@pytest.fixture
def base_model():
    from torch.nn import Conv2d, ReLU, Sequential

    return Sequential(
        Conv2d(3, 64, kernel_size=3, padding=1),
        ReLU(),
        Conv2d(64, 64, kernel_size=3, padding=1),
        ReLU(),
    )


def test_multi_scale_model(base_model):
    from neurenix_ms.multiscale import MultiScaleModel

    model = MultiScaleModel(scales=[1.0, 0.5, 0.25], base_model=base_model, fusion_method="concat")
    input_tensor = nx.Tensor(shape=(1, 3, 224, 224))
    output = model(input_tensor)
    assert output.shape == (1, 192, 224, 224)


def test_choosing_scales(base_model):
    from neurenix_ms.multiscale import MultiScaleModel

    fine_model = MultiScaleModel(
        scales=[1.0, 0.75, 0.5, 0.25], base_model=base_model, fusion_method="concat"
    )
    coarse_model = MultiScaleModel(scales=[1.0, 0.5], base_model=base_model, fusion_method="concat")
    x = nx.Tensor(shape=(1, 3, 224, 224))
    assert fine_model(x).shape == (1, 256, 224, 224)
    assert coarse_model(x).shape == (1, 128, 224, 224)


def test_feature_fusion():
    from neurenix_ms.multiscale import FeatureFusion

    concat_fusion = FeatureFusion(
        in_channels=[64, 128, 256], out_channels=512, fusion_method="concat"
    )
    sum_fusion = FeatureFusion(in_channels=[128, 128, 128], out_channels=128, fusion_method="sum")
    attention_fusion = FeatureFusion(
        in_channels=[64, 128, 256], out_channels=128, fusion_method="attention"
    )
    maps = [torch.randn(1, c, n, n) for c, n in ((64, 16), (128, 8), (256, 4))]
    assert concat_fusion(maps).shape == (1, 512, 16, 16)
    assert attention_fusion(maps).shape == (1, 128, 16, 16)
    same = [torch.randn(1, 128, 8, 8) for _ in range(3)]
    assert torch.equal(sum_fusion(same), same[0] + same[1] + same[2])
    assert not list(sum_fusion.parameters())


def test_memory_efficiency():
    from neurenix_ms.multiscale import PyramidNetwork

    input_tensor = nx.Tensor(shape=(1, 3, 224, 224))
    model = PyramidNetwork(in_channels=3, out_channels=1, num_levels=4, base_channels=32)
    with nx.enable_gradient_checkpointing():
        output = model(input_tensor)
    assert output.shape == (1, 1, 224, 224)


def test_scale_selection(base_model):
    from neurenix_ms.multiscale import MultiScaleModel

    high_res_model = MultiScaleModel(
        scales=[1.0, 0.5, 0.25, 0.125], base_model=base_model, fusion_method="concat"
    )
    low_res_model = MultiScaleModel(
        scales=[1.0, 0.75, 0.5], base_model=base_model, fusion_method="concat"
    )
    assert high_res_model(nx.Tensor(shape=(1, 3, 64, 64))).shape == (1, 256, 64, 64)
    assert low_res_model(nx.Tensor(shape=(1, 3, 64, 64))).shape == (1, 192, 64, 64)


def test_image_segmentation_with_unet(tmp_path, monkeypatch, capsys):
    from torch.nn import BCELoss
    from torch.optim import Adam
    from torch.utils.data import DataLoader

    from neurenix_ms.multiscale import UNet

    monkeypatch.chdir(tmp_path)
    images = torch.randn(8, 3, 16, 16)
    train_dataset = [(image, (image[:1] > 0).float()) for image in images]

    model = UNet(
        in_channels=3, out_channels=1, features=[64, 128, 256, 512], final_activation="sigmoid"
    )
    criterion = BCELoss()
    optimizer = Adam(model.parameters(), lr=0.001)
    train_loader = DataLoader(train_dataset, batch_size=8, shuffle=True)

    num_epochs = 2
    losses = []
    for epoch in range(num_epochs):
        for batch_idx, (images, masks) in enumerate(train_loader):
            outputs = model(images)
            loss = criterion(outputs, masks)
            losses.append(loss.item())

            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

            if batch_idx % 10 == 0:
                print(f"Epoch {epoch + 1}/{num_epochs}, Batch {batch_idx}, Loss: {loss.item():.4f}")

    nx.save(model, "unet_segmentation_model.nx")
    assert losses[1] < losses[0]
    assert "Epoch 2/2, Batch 0, Loss: " in capsys.readouterr().out
    loaded = nx.load("unet_segmentation_model.nx").eval()
    assert torch.equal(loaded(images), model.eval()(images))


def test_multi_scale_feature_extraction():
    from torch.nn import Linear, ReLU, Sequential

    from neurenix_ms.multiscale import FeatureFusion, PyramidNetwork

    feature_extractor = PyramidNetwork(
        in_channels=3, out_channels=128, num_levels=4, base_channels=64
    )
    fusion = FeatureFusion(
        in_channels=[64, 128, 256, 512], out_channels=256, fusion_method="attention"
    )
    classifier = Sequential(Linear(256, 128), ReLU(), Linear(128, 10))

    def forward(x):
        _ = feature_extractor(x)
        features = feature_extractor.get_features()
        fused_features = fusion(features)
        pooled_features = nx.mean(fused_features, dim=[2, 3])
        output = classifier(pooled_features)
        assert [tuple(f.shape) for f in features] == [
            (1, 64, 224, 224),
            (1, 128, 112, 112),
            (1, 256, 56, 56),
            (1, 512, 28, 28),
        ]
        assert fused_features.shape == (1, 256, 224, 224)
        assert pooled_features.shape == (1, 256)
        return output

    input_image = nx.Tensor(shape=(1, 3, 224, 224))
    output = forward(input_image)
    assert output.shape == (1, 10)


def test_the_other_spellings():
    assert nx.Tensor(shape=(2, 3)).equal(torch.zeros(2, 3))
    assert nx.nn is torch.nn
    assert nx.optim is torch.optim
    assert nx.data is torch.utils.data
