const at = (id) => document.getElementById(id);
const EXPLAINED = "original, two hidden halves with their redraws, and a distance map";
const judged = [];
let limits = []; // the largest p-value flagged at each tenth of a percent, as the calibration says
const headers = () => (at("key").value ? { "X-API-Key": at("key").value } : {});

function make(tag, attributes, ...inside) {
  const made = Object.assign(document.createElement(tag), attributes);
  made.append(...inside);
  return made;
}

function decide() {
  const rate = Number(at("rate").value);
  at("rate-shown").textContent = `${rate.toFixed(1)}%`;
  for (const { result, place } of judged) {
    const odd = result.p_value <= limits[Math.round(10 * rate) - 1];
    place.textContent = odd ? "out-of-distribution" : "in-domain";
    place.className = odd ? "odd" : "calm";
  }
}

async function told(response) {
  const answer = await response.json().catch(() => ({}));
  return typeof answer.detail === "string" ? answer.detail : `the service answered ${response.status}`;
}

// the service's answer to a form; 422 with results says what is wrong with each image
async function asked(path, form) {
  const response = await fetch(path, { method: "POST", body: form, headers: headers() });
  if (response.ok) return response;
  const answer = await response.clone().json().catch(() => ({}));
  if (answer.results) return response;
  throw new Error(await told(response));
}

async function explained(image, name) {
  const form = new FormData();
  form.append("image", image, name);
  return URL.createObjectURL(await (await asked("v1/explain", form)).blob());
}

function whyButton(file, item) {
  const why = make("button", { type: "button", textContent: "Why?" });
  why.setAttribute("aria-label", `Why? Explain ${file.name}`);
  why.addEventListener("click", async () => {
    why.disabled = true;
    at("state").textContent = `explaining ${file.name}…`;
    try {
      item.append(make("img", { className: "why", alt: `${file.name}: ${EXPLAINED}`, src: await explained(file, file.name) }));
      why.remove();
      at("state").textContent = `${file.name} explained`;
    } catch (error) {
      at("state").textContent = `${file.name}: ${error.message}`;
      why.disabled = false;
    }
  });
  return why;
}

function show(file, result) {
  const place = make("strong", {}), words = make("p", {});
  const text = make("div", {}, make("p", { className: "name", textContent: file.name }), place, words);
  const mine = make("img", { className: "mine", alt: "", src: URL.createObjectURL(file) });
  const item = make("li", {}, mine, text);
  at("results").prepend(item);
  if (result.error) {
    place.textContent = "can't be used";
    words.textContent = result.error;
    mine.remove();
    return;
  }
  words.textContent = `score ${result.score.toFixed(3)}, p ${result.p_value.toFixed(4)}: ${result.words}`;
  judged.push({ result, place });
  text.append(whyButton(file, item));
}

async function take(files) {
  const list = [...files];
  if (!list.length) return;
  const many = `${list.length} image${list.length === 1 ? "" : "s"}`;
  at("state").textContent = `scoring ${many}…`;
  const form = new FormData();
  for (const file of list) form.append("images", file);
  try {
    const { results } = await (await asked("v1/score", form)).json();
    results.forEach((result, i) => show(list[i], result));
    decide();
    at("state").textContent = `${many} looked at`;
  } catch (error) {
    at("state").textContent = error.message;
  }
}

async function openCamera() {
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: true });
    at("seen").srcObject = stream;
    await at("seen").play();
    at("seen").hidden = at("shoot").hidden = false;
    at("shoot").focus();
  } catch (error) {
    at("state").textContent = `the camera can't be used: ${error.message}`;
  }
}

function shoot() {
  const seen = at("seen"), canvas = make("canvas", { width: seen.videoWidth, height: seen.videoHeight });
  canvas.getContext("2d").drawImage(seen, 0, 0);
  for (const track of seen.srcObject.getTracks()) track.stop();
  seen.hidden = at("shoot").hidden = true;
  canvas.toBlob((blob) => take([new File([blob], "camera.png", { type: "image/png" })]), "image/png");
}

async function about() {
  const model = await fetch("v1/model", { headers: headers() });
  at("about").textContent = model.ok ? "" : await told(model);
  if (!model.ok) return;
  const known = await model.json();
  limits = known.limits;
  at("about").textContent = `Normal is what the model has learnt: ${known.trained_on}.`;
  at("rate").min = Math.max(0.1, Math.ceil(1000 * known.smallest_false_alarms) / 10);
  at("rate").value = 100 * known.false_alarms;
  decide();
  const { images } = await (await fetch("v1/typical", { headers: headers() })).json();
  at("comparison").hidden = !images.length;
  at("typical").replaceChildren(...images.map(typical));
}

function typical(image) {
  const p = make("span", { className: "note", textContent: `p ${image.p_value.toFixed(2)}` });
  const button = make("button", { type: "button" }, make("img", { className: "mine", alt: image.id, src: image.picture }), p);
  button.addEventListener("click", async () => {
    const blob = await (await fetch(image.picture)).blob();
    Object.assign(at("typical-why"), { src: await explained(blob, image.id), alt: `${image.id}: ${EXPLAINED}`, hidden: false });
  });
  return make("li", {}, button);
}

at("files").addEventListener("change", (event) => take(event.target.files));
at("rate").addEventListener("input", decide);
at("key").addEventListener("change", about);
at("camera").hidden = !navigator.mediaDevices;
at("camera").addEventListener("click", openCamera);
at("shoot").addEventListener("click", shoot);
document.addEventListener("paste", (event) => take(event.clipboardData.files));
at("drop").addEventListener("dragover", (event) => { event.preventDefault(); at("drop").classList.add("over"); });
at("drop").addEventListener("dragleave", () => at("drop").classList.remove("over"));
at("drop").addEventListener("drop", (event) => {
  event.preventDefault();
  at("drop").classList.remove("over");
  take(event.dataTransfer.files);
});
about();
