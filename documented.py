import taylorglo

loss = taylorglo.load_loss("zoo:digits")  # or a path, such as runs/store/digits/champion/loss.json
value = loss(network(images), targets)  # targets are class indices or distributions
value.backward()
values = loss.per_sample(network(images), targets)  # of each sample, by the formula
print(taylorglo.dynamics(loss.theta.tolist(), num_classes=10))  # how it learns
