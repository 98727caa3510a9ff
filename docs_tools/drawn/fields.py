"""Sketches of implicit fields, time-steppers and recurrent baselines."""

from docs_tools.drawn.sketch import Sketch, data, step

POINTS = {"p": "torch.rand(5, 1)", "x": "torch.rand(100, 2)"}
GRID = "model.forward_grid(p, x)"
STATE = {"x": "torch.rand(3, 2)"}
COMPUTED = "f'{{sum(map(len, called(model.steppers[{}])))}} states'"
SEQUENCE = {"x": "torch.rand(2, 5, 3)"}

_WRITTEN = [
    [data("parameters", "p"), data("points", "x")],
    [step("ParameterNet", "model.parameter_net"), None],
    [step("compute weights", "model.weights(p)", has="model.last"), step("ShapeNet")],
    [None, data("field", "y")],
]
_WRITTEN_ARROWS = [
    ("parameters", "ParameterNet"),
    ("ParameterNet", "compute weights"),
    ("compute weights", "ShapeNet"),
    ("points", "ShapeNet"),
    ("ShapeNet", "field"),
]

SKETCHES = {
    "NIF": Sketch(
        "NIF(parameter_dim=1, coordinate_dim=2)",
        _WRITTEN,
        "A network of the parameters computes the weights of a network of the coordinates",
        POINTS,
        GRID,
        _WRITTEN_ARROWS,
    ),
    "MultiScaleNIF": Sketch(
        "MultiScaleNIF(parameter_dim=1, coordinate_dim=2)",
        [
            *_WRITTEN[:2],
            [_WRITTEN[2][0], step("ShapeNet of\nsine layers", name="ShapeNet")],
            _WRITTEN[3],
        ],
        "A network of the parameters computes the weights of a network of sine layers",
        POINTS,
        GRID,
        _WRITTEN_ARROWS,
    ),
    "LastLayerNIF": Sketch(
        "LastLayerNIF(parameter_dim=1, coordinate_dim=2, latent_dim=4)",
        [
            [data("parameters", "p"), data("points", "x")],
            [step("ParameterNet", "model.parameter_net"), step("ShapeNet", has="model.shape_layers")],
            [data("coefficients", "model.coefficients(p)"), data("basis functions", "model.basis(x)")],
            [step("multiply, add")],
            [data("field", "y")],
        ],
        "Coefficients that depend on the parameters times basis functions of the coordinates",
        POINTS,
        GRID,
    ),
    "Normalizer": Sketch(
        "Normalizer(NIF(1, 2))",
        [
            [data("parameters", "p"), data("points", "x")],
            [step("scale", name="scale p"), step("scale", name="scale x")],
            [step("field, in scaled units", has="model.model")],
            [step("to physical units")],
            [data("field", "y")],
        ],
        "A model in scaled units is evaluated in physical units",
        POINTS,
        GRID,
    ),
    "MLP": Sketch(
        "MLP(2, 3, [32, 32])",
        [
            [data("x")],
            [step("dense, activation", "model.layers[0]", name="first")],
            [step("dense, activation", "model.layers[1]", name="second")],
            [step("dense", "model.layers[2]")],
            [data("y")],
        ],
        "Dense layers with activations between them",
        {"x": "torch.rand(5, 2)"},
    ),
    "TimeStepper": Sketch(
        "TimeStepper(MLP(2, 2, [32]), step_size=4)",
        [
            [data("state now", "x")],
            [step("network: increment", "model.network")],
            [step("add")],
            [data("state 4 dt later", "y")],
        ],
        "A network predicts the increment of a state",
        STATE,
        around=[("state now", "add")],
    ),
    "IntegratorStepper": Sketch(
        "IntegratorStepper(lambda x: -x, dt=0.1, step_size=2)",
        [
            [data("state now", "x")],
            [step("right-hand side,\nfour times (rk4)")],
            [step("add")],
            [data("state 2 dt later", "y")],
        ],
        "A numerical integrator advances a state",
        STATE,
        around=[("state now", "add")],
    ),
    "HierarchicalTimeStepper": Sketch(
        "HierarchicalTimeStepper([TimeStepper(MLP(2, 2, [32]), s) for s in (16, 4, 1)])",
        [
            [data("start", "x")],
            [step("stride 16", COMPUTED.format(0), "model.steppers[0]")],
            [step("stride 4: from all\nthese in one batch", COMPUTED.format(1), "model.steppers[1]")],
            [step("stride 1: from all\nthese in one batch", COMPUTED.format(2), "model.steppers[2]")],
            [data("forecast", "y")],
        ],
        "Long strides first, then shorter strides in between, with one batch per stride",
        STATE,
        "model.forecast(x, 64)",
    ),
    "AdaptiveTimeStepper": Sketch(
        "AdaptiveTimeStepper([TimeStepper(MLP(2, 2, [32]), s) for s in (1, 4, 16)], "
        "StrideErrors(MLP(2, 6, [8]), [0.0, 0.0], [1.0, 1.0]), 0.01)",
        [
            [data("start", "x")],
            [step("predict errors\nof all strides", has="model.errors")],
            [step("largest stride\nwithin the tolerance", has="model.steppers")],
            [step("shorter strides\nin between, where\nstates are curved", name="shorter")],
            [data("forecast", "y")],
        ],
        "Strides that follow the state, and shorter strides in between only where they are needed",
        STATE,
        "model.forecast(x, 64)",
    ),
    "StrideErrors": Sketch(
        "StrideErrors(MLP(2, 6, [8]), mean=[1.0, 0.0], std=[2.0, 1.0])",
        [
            [data("state", "x")],
            [step("- mean, / std")],
            [step("network", "model.network")],
            [data("errors of 3 strides", "y")],
        ],
        "A network predicts the logarithms of the errors of all strides",
        STATE,
    ),
    "StandardizedNetwork": Sketch(
        "StandardizedNetwork(MLP(2, 2, [32]), mean=[1.0, 0.0], std=[2.0, 1.0], scale=[0.1, 0.1])",
        [
            [data("state", "x")],
            [step("- mean, / std")],
            [step("network", "model.network")],
            [step("times scale")],
            [data("increment", "y")],
        ],
        "A network with standardized input states and output increments",
        STATE,
    ),
    "FourierLatents": Sketch(
        "FourierLatents(1, [32], [6, 3])",
        [
            [data("field", "x")],
            [step("Fourier coefficients")],
            [data("6 modes", "y[0]"), data("3 modes", "y[1]")],
        ],
        "The coefficients of the lowest Fourier modes, at two cutoffs",
        {"x": "torch.rand(2, 1, 32)"},
    ),
    "LinearLatents": Sketch(
        "LinearLatents(8, [4, 2])",
        [
            [data("state", "x")],
            [step("linear", has="model")],
            [data("4 features", "y[0]"), data("2 features", "y[1]")],
        ],
        "Learned linear features of a state, of two numbers",
        {"x": "torch.rand(3, 8)"},
    ),
    "MultirateStepper": Sketch(
        "MultirateStepper(MLP(9, 3, [32]), LinearLatents(3, [3, 2]), [1, 4], hidden_size=8)",
        [
            [data("state", "x"), None],
            [step("latents", has="model.latents"),
             step("coarse unit,\nevery 4 steps", has="model.levels[1]")],
            [None, step("fine unit,\nevery step", has="model.levels[0]")],
            [step("predictor", "called(model.predictor)[0]", has="model.predictor"), None],
            [step("fuse by gates", has="model.levels")],
            [data("next state", "y")],
        ],
        "Latents of two scales are predicted at two rates, and fused with the next state",
        {"x": "torch.rand(2, 5, 3)"},
    ),
    "SequenceModel": Sketch(
        "LSTMForecaster(3, 16)",
        [
            [data("state", "x"), data("hidden state", "called(model.lstm)[0][1][0]")],
            [step("recurrent cell")],
            [step("readout: increment", "model.readout")],
            [data("next state", "y")],
        ],
        "A hidden state is updated and read out step by step",
        SEQUENCE,
        around=[("recurrent cell", "hidden state")],
        arrows=[("state", "recurrent cell"), ("hidden state", "recurrent cell"),
                ("recurrent cell", "readout: increment"),
                ("readout: increment", "next state")],
    ),
    "LSTMForecaster": Sketch(
        "LSTMForecaster(3, 16)",
        [
            [data("history", "x")],
            [step("LSTM", "called(model.lstm)[0][0]", has="model.lstm")],
            [step("linear readout: increment", "model.readout")],
            [step("add")],
            [data("next states", "y")],
        ],
        "A long short-term memory and a linear readout",
        SEQUENCE,
        around=[("history", "add")],
    ),
    "ClockworkRNN": Sketch(
        "ClockworkRNN(3, 16)",
        [
            [data("history", "x")],
            [step("units at\nall steps", has="model.recurrent"),
             step("every\n4th", has="model.recurrent"),
             step("every\n16th", has="model.recurrent"),
             step("every\n64th", has="model.recurrent")],
            [step("linear readout: increment", "model.readout")],
            [step("add")],
            [data("next states", "y")],
        ],
        "Groups of units that are updated at different periods, and a linear readout",
        SEQUENCE,
        around=[("history", "add")],
    ),
    "EchoStateNetwork": Sketch(
        "EchoStateNetwork(3, 50)",
        [
            [data("history", "x")],
            [step("fixed random network", "model.follow(x)[0]")],
            [step("fitted linear readout", "model.readout")],
            [step("add")],
            [data("next states", "y")],
        ],
        "A fixed random recurrent network with a fitted linear readout",
        SEQUENCE,
        around=[("history", "add")],
    ),
    "Advection": Sketch(
        "Advection(2)",
        [
            [data("density", "x"), data("velocity", "v")],
            [None, step("follow the\nflow back")],
            [step("integrate over\ndeparture cells"), None],
            [step("restore the mass")],
            [data("density after", "y")],
        ],
        "The flow is followed back, and the density is integrated over the departure cells",
        {"x": "torch.rand(2, 1, 24, 20)", "v": "torch.rand(2, 2, 24, 20)"},
        "model(x, v)",
        arrows=[("density", "integrate over\ndeparture cells"), ("velocity", "follow the\nflow back"),
                ("follow the\nflow back", "integrate over\ndeparture cells"),
                ("integrate over\ndeparture cells", "restore the mass"),
                ("restore the mass", "density after")],
    ),
    "MassConserving": Sketch(
        "MassConserving(UNet(3, 1, features=[4, 8], norm=None))",
        [
            [data("density, fields", "x"), None],
            [step("network", "model.network"), None],
            [step("correct to the\nmass before", name="mass"), None],
            [data("density after", "y"), None],
        ],
        "The output of a network is corrected to the mass of its input",
        {"x": "torch.rand(2, 3, 24, 20)"},
        "model(x)",
    ),
    "FluxConservation": Sketch(
        "FluxConservation(2)",
        [
            [data("density", "x"), data("fluxes", "f")],
            [None, step("close walls\nand land")],
            [None, step("limit the outflow\nto the mass", name="limit")],
            [step("add what flows in,\nminus what flows out", name="add"), None],
            [data("density after", "y")],
        ],
        "Limited fluxes through the faces of cells are added to a density",
        {"x": "torch.rand(2, 1, 24, 20)", "f": "torch.rand(2, 2, 24, 20)"},
        "model(x, f)",
        arrows=[("density", "add"), ("fluxes", "close walls\nand land"),
                ("close walls\nand land", "limit"), ("limit", "add"), ("add", "density after")],
    ),
}  # fmt: skip
