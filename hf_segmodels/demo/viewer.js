const find = (selector) => element.querySelector(selector);
const viewer = find('.viewer'), stage = find('.stage'), photo = find('.photo'), canvas = find('.colors');
const tip = find('.tip'), marker = find('.marker'), legend = find('.legend');
let value = null, labels = null, pinned = null, request = 0;

const load = async (file) => {
  const image = new Image();
  image.src = file.url;
  await image.decode();
  return image;
};

const readLabels = (image, width, height) => {
  const hidden = new OffscreenCanvas(width, height);
  const context = hidden.getContext('2d', {willReadFrequently: true});
  context.drawImage(image, 0, 0);
  const pixels = context.getImageData(0, 0, width, height).data;
  const found = new Uint16Array(width * height);
  for (let i = 0; i < found.length; i++) found[i] = pixels[4 * i] | (pixels[4 * i + 1] << 8);
  return found;
};

// Paint all classes, or a single class with all others dark.
const paint = (only = null) => {
  const pack = ([red, green, blue]) => ((255 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
  const colors = new Uint32Array(65536).fill(pack([12, 16, 24]));
  for (const item of value.classes) if (only === null || only === item.index) colors[item.index] = pack(item.color);
  const context = canvas.getContext('2d');
  const picture = context.createImageData(value.width, value.height);
  const pixels = new Uint32Array(picture.data.buffer);
  for (let i = 0; i < pixels.length; i++) pixels[i] = colors[labels[i]];
  context.putImageData(picture, 0, 0);
  viewer.classList.toggle('picked', only !== null);
};

const drawLegend = () => {
  legend.replaceChildren(...value.classes.map((item) => {
    const button = document.createElement('button');
    const patch = document.createElement('i'), share = document.createElement('small');
    button.type = 'button';
    button.dataset.index = item.index;
    button.setAttribute('aria-pressed', 'false');
    patch.style.background = `rgb(${item.color.join(',')})`;
    share.textContent = item.percent;
    button.append(patch, item.name, share);
    return button;
  }));
};

const press = (index) => {
  pinned = index;
  for (const button of legend.children) button.setAttribute('aria-pressed', Number(button.dataset.index) === index);
  paint(index);
};

const show = async () => {
  const mine = ++request, requested = props.value;
  marker.hidden = tip.hidden = true;
  if (!requested || !requested.image) {
    viewer.classList.add('empty');
    return;
  }
  const [picture, indices] = await Promise.all([load(requested.image), load(requested.labels)]);
  if (mine !== request) return;  // a newer result has arrived
  value = requested;
  labels = readLabels(indices, value.width, value.height);
  photo.src = picture.src;
  [canvas.width, canvas.height] = [value.width, value.height];
  stage.style.setProperty('--aspect', value.width / value.height);
  drawLegend();
  press(null);
  viewer.classList.remove('empty');
  viewer.dataset.shown = requested.labels.url;
  // On a phone, the result is below the fold.
  if (matchMedia('(max-width: 768px)').matches) stage.scrollIntoView({behavior: 'smooth', block: 'nearest'});
};

const pointAt = (event) => {
  const box = stage.getBoundingClientRect();
  const inside = (part) => Math.min(Math.max(part, 0), 1 - 1e-6);
  return [inside((event.clientX - box.left) / box.width), inside((event.clientY - box.top) / box.height)];
};

const hover = (event) => {
  if (!value) return;
  const [x, y] = pointAt(event);
  const index = labels[Math.floor(y * value.height) * value.width + Math.floor(x * value.width)];
  const item = value.classes.find((one) => one.index === index);
  tip.textContent = `${item.name} · ${item.percent}`;
  tip.hidden = false;
  tip.style.left = x < 0.6 ? `calc(${100 * x}% + 14px)` : 'auto';
  tip.style.right = x < 0.6 ? 'auto' : `calc(${100 * (1 - x)}% + 14px)`;
  tip.style.top = `min(calc(${100 * y}% + 14px), calc(100% - 2rem))`;
  for (const button of legend.children) button.classList.toggle('under', Number(button.dataset.index) === index);
};

stage.addEventListener('pointermove', hover);
stage.addEventListener('pointerdown', hover);
stage.addEventListener('pointerleave', () => {
  tip.hidden = true;
  for (const button of legend.children) button.classList.remove('under');
});
stage.addEventListener('click', (event) => {
  const [x, y] = pointAt(event);
  marker.style.left = `${100 * x}%`;
  marker.style.top = `${100 * y}%`;
  marker.hidden = false;
  trigger('select', {index: [x, y], value: tip.textContent});
});
const indexOf = (event) => {
  const button = event.target.closest('button');
  return button ? Number(button.dataset.index) : null;
};
legend.addEventListener('click', (event) => {
  const index = indexOf(event);
  if (index !== null) press(index === pinned ? null : index);
});
legend.addEventListener('pointerover', (event) => {
  const index = indexOf(event);
  if (index !== null && event.pointerType === 'mouse') paint(index);
});
legend.addEventListener('pointerleave', (event) => { if (value && event.pointerType === 'mouse') paint(pinned); });

watch('value', show);
show();
