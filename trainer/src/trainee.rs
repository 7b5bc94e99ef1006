//! What burn's learner trains: a network and the running average of its weights.
//!
//! This module owns the loss and the average. It must not know where batches come from, how long
//! a run lasts, or what becomes of the weights.

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::optim::lr_scheduler::module_lr_scheduler::ModuleLearningRate;
use burn::optim::{GradientsParams, ModuleOptimizer};
use burn::tensor::{Device, ExecutionError, Tensor};
use burn::train::metric::{Adaptor, LossInput};
use burn::train::{InferenceStep, ItemLazy, TrainOutput, TrainStep};

use crate::batch::Batch;
use crate::model::Denoiser;

/// What is trained: the network, and the slowly moving average that is exported.
#[derive(Module, Debug)]
pub struct Trainee {
    model: Denoiser,
    average: Denoiser,
    /// How many steps the average has seen; a parameter, so that checkpoints hold it.
    updates: Param<Tensor<1>>,
    decay: f64,
}

impl Trainee {
    /// A network on a device with autodiff, and an average that begins as its copy.
    pub fn new(model: Denoiser, ema_decay: f64, device: &Device) -> Self {
        let average = model.clone().map(&mut Detach);
        let updates = Param::from_tensor(Tensor::zeros([1], device)).set_require_grad(false);
        Self {
            model,
            average,
            updates,
            decay: ema_decay,
        }
    }

    /// The averaged network.
    pub fn into_average(self) -> Denoiser {
        self.average
    }

    /// Moves the average towards the weights: `average += (1 - d) (weights - average)`.
    ///
    /// `d` rises as `(1 + n) / (10 + n)` up to the chosen decay, so that the first, random
    /// weights are soon forgotten.
    fn update_average(mut self) -> Self {
        let n = self.updates.val().detach();
        let decay = ((n.clone() + 1.0) / (n.clone() + 10.0)).clamp_max(self.decay);
        let mut weights = Weights {
            rate: decay.neg() + 1.0,
            flat: Vec::new(),
            next: 0,
        };
        self.model.visit(&mut weights);
        self.average = self.average.map(&mut weights);
        self.updates = self.updates.map(|_| n + 1.0);
        self
    }

    /// The squared error of each picture, weighted: `[n]`.
    pub(crate) fn loss(model: &Denoiser, batch: Batch) -> Tensor<1> {
        let predicted = model.forward(batch.x, batch.t, Some(batch.class));
        (predicted - batch.target)
            .square()
            .mean_dim(1)
            .squeeze_dim::<1>(1)
            * batch.weight
    }
}

/// Gives parameters a life of their own: a new identity, no gradient.
struct Detach;

impl ModuleMapper for Detach {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let value = param.val().detach();
        Param::initialized(ParamId::new(), value).set_require_grad(false)
    }
}

/// The network's weights in the order of a visit, on their way into the average.
struct Weights {
    rate: Tensor<1>,
    flat: Vec<Tensor<1>>,
    next: usize,
}

impl ModuleVisitor for Weights {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        self.flat
            .push(param.val().detach().flatten(0, D as i32 - 1));
    }
}

impl ModuleMapper for Weights {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let weights = self.flat[self.next].clone();
        self.next += 1;
        param.map(|average| {
            let average = average.detach();
            let weights = weights.reshape(average.shape());
            average.clone() + (weights - average) * self.rate.clone().unsqueeze()
        })
    }
}

/// What a step reports to the metrics: the loss of each picture, `[n]`.
pub struct StepOutput {
    loss: Tensor<1>,
}

impl ItemLazy for StepOutput {
    fn sync(self) -> Result<Self, ExecutionError> {
        self.loss.device().flush()?;
        Ok(Self {
            loss: self.loss.without_autodiff(),
        })
    }
}

impl Adaptor<LossInput> for StepOutput {
    fn adapt(&self) -> LossInput {
        LossInput::new(self.loss.clone())
    }
}

impl TrainStep for Trainee {
    type Input = Batch;
    type Output = StepOutput;

    fn step(&self, batch: Batch) -> TrainOutput<StepOutput> {
        let loss = Self::loss(&self.model, batch);
        let grads = loss.clone().mean().backward();
        TrainOutput::new(self, grads, StepOutput { loss })
    }

    fn optimize(
        self,
        optim: &mut ModuleOptimizer,
        lr: ModuleLearningRate,
        grads: GradientsParams,
    ) -> Self {
        optim.step(lr, self, grads).update_average()
    }
}

impl InferenceStep for Trainee {
    type Input = Batch;
    type Output = StepOutput;

    fn step(&self, batch: Batch) -> StepOutput {
        StepOutput {
            loss: Self::loss(&self.average, batch),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::MlpClassicConfig;
    use crate::dataset::PIXELS;
    use burn::optim::SgdConfig;
    use burn::tensor::TensorData;

    fn batch(device: &Device) -> Batch {
        let zeros = || TensorData::zeros::<i32, _>([2]);
        Batch {
            x: Tensor::ones([2, PIXELS], device),
            t: Tensor::from_data(zeros(), device),
            class: Tensor::from_data(zeros(), device),
            target: Tensor::zeros([2, PIXELS], device),
            weight: Tensor::from_floats([1.0, 3.0], device),
        }
    }

    fn answer(model: &Denoiser, device: &Device) -> f32 {
        let batch = batch(device);
        model
            .forward(batch.x, batch.t, None)
            .slice([0..1, 0..1])
            .into_scalar::<f32>()
    }

    #[test]
    fn average_begins_at_the_weights_and_follows_slowly() {
        let device = Device::flex().autodiff();
        let model = MlpClassicConfig::new(vec![4], 10).init(&device);
        let mut trainee = Trainee::new(Denoiser::Classic(model), 0.5, &device);
        let before = answer(&trainee.model, &device);
        assert_eq!(before, answer(&trainee.average, &device));

        let mut optim = SgdConfig::new().init();
        let step = TrainStep::step(&trainee, batch(&device));
        trainee = trainee.optimize(&mut optim, 10.0.into(), step.grads);
        let (now, average) = (
            answer(&trainee.model, &device),
            answer(&trainee.average, &device),
        );
        assert_ne!(now, before);
        // The first decay is 1/10: the average goes nine tenths of the way in weight space, so
        // in the outputs of two layers it lies nearer to the new weights than to the old.
        assert!(
            (average - now).abs() < (average - before).abs(),
            "{before} {average} {now}"
        );
        assert_eq!(trainee.updates.val().into_scalar::<f32>(), 1.0);
    }

    #[test]
    fn loss_is_the_weighted_mean_square_of_each_picture() {
        let device = Device::flex();
        let model = Denoiser::Classic(MlpClassicConfig::new(vec![4], 10).init(&device));
        let losses: Vec<f32> = Trainee::loss(&model, batch(&device))
            .into_data()
            .try_to_vec()
            .unwrap();
        assert!(
            losses[0] > 0.0 && (losses[1] - 3.0 * losses[0]).abs() < 1e-5,
            "{losses:?}"
        );
    }
}
